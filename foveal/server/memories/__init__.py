"""Memories over HTTP: made, listed, grown, forked, kept up to date, moved; and recalled from."""
