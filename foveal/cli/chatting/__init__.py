"""`foveal chat`: the conversation (here in the process, or at a server), and the loop that a person talks to."""
