"""The paper's analyses as studies: written part by part, resumed after a stop, divided among processes."""
