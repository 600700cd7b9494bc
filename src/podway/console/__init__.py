"""The console: a cluster in a browser. It shows what the commands say, reads only, and asks the same sources."""
