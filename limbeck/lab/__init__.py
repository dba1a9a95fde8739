"""What a run left behind: numbers, figures, report. Reads run directories only and imports no torch."""
