"""What `import potstill` gives."""
