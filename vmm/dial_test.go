package vmm_test

import (
	"context"
	"errors"
	"testing"
)

// Who dials and gives up before the guest has answered does not hang up on
// the backend, which would not survive an answer to nobody.
func TestDialThatIsGivenUp(t *testing.T) {
	m := launch(t, "print:hello")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan error, 1)
	go func() {
		_, err := m.Dial(ctx, 9002)
		given <- err
	}()
	dial := func(port uint32) {
		t.Helper()
		c, err := m.Dial(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	dial(9003) // the backend has the first
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("a dial that was given up: %v", err)
	}
	dial(9004) // and has answered it
	dial(guestPort)
	if err := m.Stop(t.Context(), "the test is over"); err != nil {
		t.Fatal(err)
	}
}
