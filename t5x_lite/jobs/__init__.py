"""One gin-configurable function a job; the command line calls them."""
