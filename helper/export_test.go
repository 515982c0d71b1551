package helper

import "time"

var (
	Encode       = encode
	ParseRequest = func(b []byte) (verb string, args any, err error) {
		verb, _, args, err = parseRequest(b)
		return verb, args, err
	}
)

type (
	OpenArgs = openArgs
	DialArgs = dialArgs

	ReserveArgs   = reserveArgs
	TapAddArgs    = tapAddArgs
	TapRemoveArgs = tapRemoveArgs
)

const (
	MaxConns   = maxConns
	MaxWorking = maxWorking
	MaxWaiting = maxWaiting
	MaxGroups  = maxGroups
)

var MaxRequest = requests.Bytes

// SetGrace shortens what a peer has for its packets.
func (s *Server) SetGrace(d time.Duration) { s.grace = d }

// Check says whether the server would do what a parsed request asks.
func (s *Server) Check(args any) error { return args.(task).check(s) }
