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

// Hold keeps everybody else from the files until the function is called.
func (l *Log) Hold() func() {
	l.turn <- struct{}{}
	return l.leave
}
