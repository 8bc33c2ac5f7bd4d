"""The paper's analyses as studies that are written as they go, go on when they were stopped, and share the work among processes."""
