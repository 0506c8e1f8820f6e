"""Evaluations of a memory as a person would use it: read a code base, recall from it, look at what is cited."""
