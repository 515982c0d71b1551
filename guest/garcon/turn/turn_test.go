package turn_test

import (
	"errors"
	"testing"

	"github.com/auberge-vm/auberge/guest/garcon/turn"
)

var errClosing = errors.New("closing")

// Who hears of an end can begin the next, though the end is still being told.
func TestNextAfterTheEnd(t *testing.T) {
	turns := turn.New(errClosing)
	if err := turns.Take(); err != nil {
		t.Fatal(err)
	}
	if err := turns.Take(); !errors.Is(err, turn.ErrTaken) {
		t.Errorf("a second one: %v", err)
	}
	heard := make(chan struct{})
	next := make(chan error, 1)
	go func() {
		<-heard
		next <- turns.Take()
	}()
	asked := make(chan struct{})
	go turns.End(func() {
		close(heard)
		<-asked
	})
	close(asked)
	if err := <-next; err != nil {
		t.Errorf("after the end: %v", err)
	}
	done := make(chan struct{})
	go func() {
		<-turns.Context.Done()
		turns.GiveBack()
		close(done)
	}()
	turns.Close()
	<-done
	if err := turns.Take(); !errors.Is(err, errClosing) {
		t.Errorf("after Close: %v", err)
	}
}
