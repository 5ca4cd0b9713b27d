"""Where rows come from and what they mean: sources, formats, rows, streams, filters. No torch."""
