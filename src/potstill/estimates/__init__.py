"""What a recipe takes on given hardware: memory by its parts, hours, dollars, disk, before anything runs."""
