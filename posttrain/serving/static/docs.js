// Swagger UI, from this server's own files, on this server's own description.
"use strict";
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
