package vshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

// Why a session ends before its process does.
var (
	errGone     = errors.New("the client is gone")
	errStopping = errors.New("vshd is stopping")
)

// A session joins a stream and a process.
type session struct {
	server *Server
	conn   net.Conn
	frames *vshpb.Reader
	out    *vshpb.Writer
	proc   *process
	input  *input
}

// run serves the session until its process has exited and all its output is
// sent, and returns the exit code. When the client is lost or ctx is done
// first, the session's processes are gone when it returns.
func (s *session) run(ctx context.Context) (int, error) {
	defer s.proc.close()
	server := ctx
	ctx, lose := context.WithCancelCause(context.WithoutCancel(server))
	defer lose(nil)
	defer context.AfterFunc(server, func() { lose(errStopping) })()
	ready := &vshpb.SetupConnectionResponse{Status: vshpb.ConnectionStatus_READY, Pid: int32(s.proc.pid)}
	if err := s.out.Write(ready); err != nil {
		lose(err)
	}

	var workers, pumps sync.WaitGroup
	defer workers.Wait()
	exited, drained := make(chan struct{}), make(chan struct{})
	workers.Go(func() { lose(s.receive(ctx)) })
	workers.Go(func() { s.proc.feed(s.input) })
	workers.Go(func() {
		s.proc.await()
		close(exited)
	})
	for _, src := range s.proc.output {
		p := &pump{source: src, out: s.out, limits: s.server.drain, buf: make([]byte, pumpFirst)}
		pumps.Go(func() {
			if err := p.run(); err != nil {
				lose(err)
			}
		})
	}
	workers.Go(func() {
		pumps.Wait()
		close(drained)
	})

	select {
	case <-exited:
		s.finish()
	case <-ctx.Done():
		return 0, s.hangUp(context.Cause(ctx))
	}
	select {
	case <-drained:
	case <-ctx.Done():
		return 0, s.hangUp(context.Cause(ctx))
	}
	code, err := s.proc.reap()
	if err != nil {
		s.tell(err)
		s.conn.SetReadDeadline(longAgo)
		return 0, err
	}
	s.out.Write(exitedWith(code))
	s.conn.SetReadDeadline(time.Now().Add(s.server.lingerTime))
	stop := context.AfterFunc(ctx, func() { s.conn.SetReadDeadline(longAgo) })
	workers.Wait()
	stop()
	return code, nil
}

// finish makes the workers come to an end after the process has exited.
func (s *session) finish() {
	if s.proc.slave != nil {
		s.proc.slave.Close()
	}
	s.input.close()
	s.proc.interrupt()
}

// hangUp ends a session before its process has exited, or before all of its
// output was sent. It returns why.
func (s *session) hangUp(why error) error {
	if !errors.Is(why, errGone) {
		s.tell(why)
	}
	s.conn.SetDeadline(longAgo)
	s.input.close()
	if err := s.proc.hangUp(s.server.killGrace); err != nil {
		why = errors.Join(why, err)
	}
	s.proc.reap()
	return why
}

// tell lets the client know why its session ends without an exit code, if the
// client still takes messages.
func (s *session) tell(why error) {
	s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	s.out.Write(status(&vshpb.ConnectionStatusMessage{
		Status:      vshpb.ConnectionStatus_FAILED,
		Description: clip(why.Error()),
	}))
}

// readPause is how long a process may leave its input alone before it counts as
// one that does not read: signals, which come after the input, have to reach
// that one too.
const readPause = 50 * time.Millisecond

// receive acts on the client's messages. It returns why it stopped.
func (s *session) receive(ctx context.Context) error {
	var watch *goneWatch
	defer func() {
		if watch != nil {
			watch.close()
		}
	}()
	reading := true // as far as is known, the process
	pause := time.NewTimer(0)
	defer pause.Stop()
	put := func(data []byte) error {
		reading = reading || !s.input.enough()
		for reading && s.input.enough() {
			pause.Reset(readPause)
			select {
			case <-s.input.room:
			case <-pause.C:
				reading = false
			}
		}
		for !s.input.put(data) {
			if watch == nil {
				var err error
				if watch, err = watchGone(s.conn); err != nil {
					return err
				}
			}
			select {
			case <-s.input.room:
			case <-watch.gone:
				return errGone
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	}
	var batch []byte // input of several messages that came together
	for {
		if len(batch) > 0 && (len(batch) >= batchInput || !s.frames.Ready()) {
			if err := put(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		payload, err := s.frames.Next()
		switch {
		case err == io.EOF, errors.Is(err, syscall.ECONNRESET):
			return errGone
		case err != nil:
			return fmt.Errorf("read the client's messages: %w", err)
		}
		stream, data, ok := vshpb.ParseData(payload)
		if ok && stream == vshpb.StdioStream_STDIN_STREAM && len(data) > 0 {
			batch = append(batch, data...)
			continue
		}
		if len(batch) > 0 {
			if err := put(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		if ok {
			err = s.data(stream, data, put)
		} else {
			err = s.control(payload, put)
		}
		if err != nil {
			return err
		}
	}
}

// batchInput is how much input of messages that came together is handed on at
// once, in bytes.
const batchInput = 128 << 10

// data takes input; no data is its end.
func (s *session) data(stream vshpb.StdioStream, data []byte, put func([]byte) error) error {
	switch {
	case stream != vshpb.StdioStream_STDIN_STREAM:
		return fmt.Errorf("the client sent data of %v", stream)
	case len(data) == 0:
		s.input.end()
		return nil
	}
	return put(data)
}

// control acts on a message that ParseData does not know. What this version
// does not know either is ignored.
func (s *session) control(payload []byte, put func([]byte) error) error {
	var m vshpb.GuestMessage
	if err := proto.Unmarshal(payload, &m); err != nil {
		return fmt.Errorf("the client sent what is no message: %w", err)
	}
	switch m := m.GetMsg().(type) {
	case *vshpb.GuestMessage_DataMessage:
		return s.data(m.DataMessage.GetStream(), m.DataMessage.GetData(), put)
	case *vshpb.GuestMessage_ResizeMessage:
		s.proc.resize(m.ResizeMessage.GetRows(), m.ResizeMessage.GetCols())
	case *vshpb.GuestMessage_Signal:
		switch m.Signal {
		case vshpb.Signal_SIGNAL_HUP, vshpb.Signal_SIGNAL_INT, vshpb.Signal_SIGNAL_QUIT, vshpb.Signal_SIGNAL_TERM:
			s.proc.signal(syscall.Signal(m.Signal))
		}
	case *vshpb.GuestMessage_StatusMessage:
		switch m.StatusMessage.GetStatus() {
		case vshpb.ConnectionStatus_EXITED, vshpb.ConnectionStatus_FAILED:
			return errGone
		}
	}
	return nil
}
