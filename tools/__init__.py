"""What developers run by ./dev, and no installation of Podway has."""
