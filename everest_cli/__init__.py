"""What the user types. torch is imported only inside commands, so that help answers at once."""
