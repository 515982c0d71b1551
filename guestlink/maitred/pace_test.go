package maitred

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener hands out connections that are there already.
type pipeListener struct{ conns chan net.Conn }

func (l pipeListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (pipeListener) Close() error                { return nil }
func (pipeListener) Addr() net.Addr              { return nil }

// A guest's connections together bring no more than its pace, after what may
// come at once; the clock is synctest's.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst, connections, each = 1000, 4000, 2, 10000
		l := pipeListener{make(chan net.Conn, connections)}
		host := paced(l, rate, burst)
		read := make(chan int, connections)
		for range connections {
			ours, guests := net.Pipe()
			l.conns <- ours
			c, err := host.Accept()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				guests.Write(make([]byte, each))
				guests.Close()
			}()
			go func() {
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 100))
				c.Close()
				read <- int(n)
			}()
		}
		began := time.Now()
		for range connections {
			if n := <-read; n != each {
				t.Errorf("%d bytes came", n)
			}
		}
		// The end of a stream waits for its turn like any byte.
		want := time.Duration(connections*each-burst) * time.Second / rate
		if took := time.Since(began); took < want-time.Second || took > want+time.Second {
			t.Errorf("it took %v, want %v", took, want)
		}
		// Whoever has been quiet has all of it again.
		<-time.After(time.Hour)
		ours, guests := net.Pipe()
		l.conns <- ours
		c, _ := host.Accept()
		began = time.Now()
		go guests.Write(make([]byte, burst))
		if _, err := io.ReadFull(c, make([]byte, burst)); err != nil || time.Since(began) != 0 {
			t.Errorf("a burst took %v, %v", time.Since(began), err)
		}
		// Closing ends a wait.
		go guests.Write(make([]byte, burst))
		if _, err := io.ReadFull(c, make([]byte, burst)); err != nil {
			t.Error(err)
		}
		done := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			done <- err
		}()
		synctest.Wait()
		began = time.Now()
		c.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) || time.Since(began) != 0 {
			t.Errorf("closing took %v, %v", time.Since(began), err)
		}
		guests.Close()
	})
}
