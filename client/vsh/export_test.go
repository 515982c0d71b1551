package vsh

import "time"

// SetPatience changes how long a signal may wait to be sent before another one
// ends the session.
func (o *Options) SetPatience(d time.Duration) { o.patience = d }
