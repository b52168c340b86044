"""What `longflow render` writes, target by target."""
