"""The passes of a run: table state in, decisions out."""
