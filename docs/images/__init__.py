"""Pictures of the pages, and how they are taken."""
