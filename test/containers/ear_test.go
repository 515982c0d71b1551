package containers

import (
	"context"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/test/testbed"
)

// An ear is the testbed's, for one test.
type ear struct {
	*testbed.Ear
	t *testing.T
}

func listen(t *testing.T, conn *godbus.Conn) *ear {
	e := &ear{Ear: testbed.Listen(conn), t: t}
	// The connection ends it, at the latest with the test's context.
	t.Cleanup(func() {
		conn.Close()
		<-e.Done()
		if err := e.Err(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// await is testbed.Await for what has to come.
func await[M proto.Message](e *ear, fits func(M) bool) M {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	m, err := testbed.Await(ctx, e.Ear, fits)
	if err != nil {
		e.t.Fatal(err)
	}
	return m
}

// all is testbed.All.
func all[M proto.Message](e *ear) []M { return testbed.All[M](e.Ear) }
