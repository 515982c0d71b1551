package cicerone_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	cpb "github.com/auberge-vm/auberge/protos/containerpb"
)

// A desktop that comes is shown what containers of its user have told before,
// and nobody else's is.
func TestDesktopThatComes(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	for i, vm := range []string{"termina", "other"} {
		m, _ := w.up(s, vm, uint32(33+i))
		token, _ := m.running(s, "penguin", 10000)
		must(t)(m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token,
			Application: []*cpb.Application{{DesktopFileId: "of-" + vm}}}))
		must(t)(m.container.UpdateMimeTypes(t.Context(), &cpb.UpdateMimeTypesRequest{Token: token, MimeTypeMappings: map[string]string{vm: "text/plain"}}))
		m.running(s, "silent", 10001) // which has told nothing
	}
	take := func() (shown []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, l := range w.lists {
			shown = append(shown, l.VmName+"/"+l.ContainerName+" has "+l.Apps[0].DesktopFileId)
		}
		for _, l := range w.types {
			shown = append(shown, fmt.Sprintf("%s/%s of %s has %v", l.VmName, l.ContainerName, l.OwnerId, l.MimeTypeMappings))
		}
		w.lists, w.types = nil, nil
		slices.Sort(shown)
		return shown
	}
	want := take()
	if len(want) != 4 {
		t.Fatalf("%q", want)
	}
	s.DesktopAppeared(t.Context(), uid+1)
	if got := take(); len(got) > 0 {
		t.Errorf("another user's desktop is shown %q", got)
	}
	s.DesktopAppeared(t.Context(), uid)
	if got := take(); !slices.Equal(got, want) {
		t.Errorf("it is shown %q, not %q", got, want)
	}
	// The next run of the service knows them too.
	s.Close()
	s = w.serve()
	s.DesktopAppeared(t.Context(), uid)
	if got := take(); !slices.Equal(got, want) {
		t.Errorf("by a service that was started anew it is shown %q, not %q", got, want)
	}
}

// A desktop that comes and goes all the time is shown its applications once at
// a time, and once more for all that came meanwhile.
func TestDesktopThatComesAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	m, _ := w.up(s, "termina", 33)
	token, _ := m.running(s, "penguin", 10000)
	must(t)(m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token}))
	slow := make(chan struct{})
	w.mu.Lock()
	w.lists, w.slow = nil, slow
	w.mu.Unlock()
	gone, leave := context.WithCancel(t.Context())
	ended := make(chan struct{}, 100)
	appear := func(ctx context.Context) {
		s.DesktopAppeared(ctx, uid)
		ended <- struct{}{}
	}
	for range 10 {
		go appear(gone)
	}
	for range 9 { // all but the one that waits for the desktop
		<-ended
	}
	leave()
	s.DesktopAppeared(t.Context(), uid) // the last one is to be shown them
	<-slow
	<-slow
	<-ended
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lists) != 2 {
		t.Errorf("the list was shown %d times", len(w.lists))
	}
}
