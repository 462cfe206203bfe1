"""What is salient in every frame of a video, and the arrays that hold it."""
