"""Questions put to a memory: a search over its own text, places that may hold the answer, and a chat model that reads
those places again and answers with their lines."""
