package guestlink

import "time"

// A Call is one that the host has made to a guest's agent.
type Call struct {
	Method string
	Took   time.Duration
	// Code is gRPC's name for how it ended, such as OK.
	Code string
	// Answered says whether the guest has said anything at all, an error
	// included.
	Answered bool
}
