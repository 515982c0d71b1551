package vmc

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// reportStep is how many percent are worth a line where there is no terminal.
const reportStep = 10

// A report says how far work is: on a terminal by a line that changes, and
// elsewhere by a line for each stage and for each step in it. With --json it
// says nothing.
type report struct {
	w       io.Writer
	subject string
	screen  bool
	begin   time.Time
	quit    chan struct{}
	done    chan struct{}
	once    sync.Once

	mu      sync.Mutex
	stage   string
	percent int
}

func (a *app) report(subject string) *report {
	r := &report{w: a.err, subject: printable(subject), begin: time.Now(), quit: make(chan struct{}), done: make(chan struct{})}
	if f, ok := a.err.(*os.File); ok {
		r.screen = term.IsTerminal(int(f.Fd()))
	}
	if a.json {
		r.w, r.screen = io.Discard, false
	}
	if !r.screen {
		close(r.done)
		return r
	}
	go func() {
		defer close(r.done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		defer fmt.Fprint(r.w, "\r\x1b[K")
		for {
			if text := r.text(); text != "" {
				fmt.Fprintf(r.w, "\r\x1b[K%s, %.1f s", text, time.Since(r.begin).Seconds())
			}
			select {
			case <-tick.C:
			case <-r.quit:
				return
			}
		}
	}()
	return r
}

// say tells the stage and how much of it is done, -1 when that is not known.
func (r *report) say(stage string, percent int) {
	r.mu.Lock()
	before, step := r.stage, r.percent
	same := stage == before && (percent < 0 || percent < step+reportStep && !(percent == 100 && step < 100))
	if r.screen || !same {
		r.stage, r.percent = stage, percent
	}
	r.mu.Unlock()
	if !r.screen && !same {
		fmt.Fprintln(r.w, r.text())
	}
}

func (r *report) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stage == "":
		return ""
	case r.percent < 0:
		return r.subject + ": " + r.stage
	}
	return fmt.Sprintf("%s: %s, %d %%", r.subject, r.stage, r.percent)
}

// end removes what is on the terminal.
func (r *report) end() {
	r.once.Do(func() { close(r.quit) })
	<-r.done
}
