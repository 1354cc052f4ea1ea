"""What every layer uses: words for people, records as JSON, files that are whole, credentials."""
