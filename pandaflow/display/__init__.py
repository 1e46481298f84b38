"""What people look at: graphs, timelines, progress, notebook pages; plain data in, pictures out."""
