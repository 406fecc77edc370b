"""Many machines, a server and a page: Ray, HTTP, and Gradio."""
