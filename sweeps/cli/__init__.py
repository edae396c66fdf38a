"""What the entries share: options, console, progress, webhook."""
