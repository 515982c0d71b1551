package vmlog

// For fuzzing without files.
var AppendLine = appendLine

const (
	MaxContent = maxContent
	MaxFile    = maxFile
	Files      = files
	Rate       = rate
	Burst      = burst
	MaxDelay   = maxDelay
)
