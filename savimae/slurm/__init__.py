"""Jobs on a Slurm cluster: scripts, submission, a site's profile, status."""
