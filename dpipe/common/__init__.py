"""What every layer uses: words for people, files that are whole or not there, credentials."""
