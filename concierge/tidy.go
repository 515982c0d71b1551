package concierge

import (
	"runtime/debug"
	"time"
)

// tidyPause is how long after the last start memory is given back.
const tidyPause = 5 * time.Second

// tidyLater gives back, once no VM has been started for a while, what starts
// have left behind. The runtime itself would take minutes for it, or forever
// when nothing happens that makes it look.
func (s *Service) tidyLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.tidy == nil:
		s.tidy = time.AfterFunc(tidyPause, debug.FreeOSMemory)
	default:
		s.tidy.Reset(tidyPause)
	}
}

// tidyNever is for the end of the service.
func (s *Service) tidyNever() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tidy != nil {
		s.tidy.Stop()
	}
}
