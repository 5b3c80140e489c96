"""What is published: wheel, sdist, and the checklist before it."""
