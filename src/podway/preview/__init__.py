"""What would be, without doing it: a change compared with today, and clusters that do not exist."""
