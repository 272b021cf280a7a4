"""The report of a sweep: who was best, by how much, and whether the seeds allow to say so."""
