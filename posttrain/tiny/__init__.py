"""What is embedded: names, generated data, a tokenizer. Models are built by running the loops as commands, never by an
import."""
