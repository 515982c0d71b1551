package vmlog_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/auberge-vm/auberge/concierge/vmlog"
)

// A guest that floods its log waits for each answer, a few seconds at most,
// and gets no more written than its share.
func TestFloodInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		var batch []vmlog.Record
		for range 256 {
			batch = append(batch, user(strings.Repeat(".", 961)))
		}
		began := time.Now()
		var written int
		for range 100 {
			before := time.Now()
			if err := b.Collect(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			written += 256 * 1001
			if waited := time.Since(before); waited > vmlog.MaxDelay {
				t.Fatalf("an answer took %v", waited)
			}
		}
		if share := vmlog.Burst + int(time.Since(began).Seconds()*vmlog.Rate); written > share+1000 {
			t.Errorf("%d bytes were written of a share of %d", written, share)
		}
		// After a pause a batch is answered at once. The clock is synctest's,
		// on which an hour takes no time and nothing depends on the machine.
		time.Sleep(time.Hour)
		before := time.Now()
		if err := b.Collect(t.Context(), batch); err != nil || time.Since(before) != 0 {
			t.Errorf("after an hour: %v, %v", time.Since(before), err)
		}
	})
}

// One that does not wait is refused, and the log says so.
func TestFloodAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		var batch []vmlog.Record
		for range 256 {
			batch = append(batch, user(strings.Repeat(".", 961)))
		}
		began := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range 30 {
			wg.Go(func() {
				if err := b.Collect(t.Context(), batch); errors.Is(err, vmlog.ErrFlood) {
					mu.Lock()
					refused++
					mu.Unlock()
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if waited := time.Since(began); waited > vmlog.MaxDelay {
			t.Errorf("the answers took %v", waited)
		}
		if refused < 20 || refused > 28 {
			t.Errorf("%d of 30 were refused", refused)
		}
		if err := b.Collect(t.Context(), []vmlog.Record{user("quiet again")}); err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, l := range b.read(0) {
			n := 0
			if _, err := fmt.Sscanf(l, "%d records were refused", &n); err == nil {
				told += n
			}
		}
		if got := b.read(1); told != refused*256 || got[0] != "quiet again" {
			t.Errorf("%d of %d refused records were told, and the log ends with %q", told, refused*256, got)
		}
		// A caller that goes away waits no longer.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began = time.Now()
		for range 10 {
			if err := b.Collect(ctx, batch); err != nil && !errors.Is(err, vmlog.ErrFlood) {
				t.Errorf("given up: %v", err)
			}
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("who has gone was waited for: %v", waited)
		}
	})
}
