package vsock

var (
	NewDemux    = newDemux
	Acceptable  = acceptable
	RequestPort = requestPort
	SourcePorts = sourcePorts
)

const (
	Backlog  = backlog
	MaxReply = maxReply
)
