"""The web app: `ctf app`."""
