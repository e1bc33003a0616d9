"""Pages and pictures to be read without network; they know nothing of studies."""
