package vsock

var (
	NewDemux    = newDemux
	Acceptable  = acceptable
	RequestPort = requestPort
)

const (
	Backlog  = backlog
	MaxReply = maxReply
)
