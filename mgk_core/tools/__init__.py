"""What one command of the command line does; nothing else imports it."""
