"""What the command line runs: options, reports, figures, evaluation."""
