"""What a trial leaves behind: a local journal first, then its picture and its MLflow run, drawn from the journal."""
