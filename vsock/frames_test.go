package vsock_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/auberge-vm/auberge/vsock"
)

func frames(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := vsock.NewFrameWriter(&b)
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("Write: %d of %d, %v", n, len(data), err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte{1}); err == nil {
		t.Fatal("data after its end was taken")
	}
	return b.Bytes()
}

func TestFramesCarryAnyData(t *testing.T) {
	for _, n := range []int{0, 1, vsock.MaxFrame - 4, vsock.MaxFrame - 3, vsock.MaxFrame, 3*vsock.MaxFrame + 17} {
		data := bytes.Repeat([]byte{'x', 'y', 'z'}, n/3+1)[:n]
		stream := bytes.NewReader(append(frames(t, data), "after"...))
		got, err := io.ReadAll(vsock.NewFrameReader(iotest.OneByteReader(stream)))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if rest, _ := io.ReadAll(stream); string(rest) != "after" {
			t.Errorf("%d bytes: what follows the frames is %q", n, rest)
		}
	}
}

func TestAStreamThatBreaksIsNotOneThatEnds(t *testing.T) {
	whole := frames(t, bytes.Repeat([]byte{7}, vsock.MaxFrame+10))
	for _, n := range []int{0, 3, 4, 100, len(whole) - 5, len(whole) - 4, len(whole) - 1} {
		_, err := io.ReadAll(vsock.NewFrameReader(bytes.NewReader(whole[:n])))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestAFrameTooLongIsRefused(t *testing.T) {
	huge := []byte{1, 128, 0, 0, 1}
	if _, err := io.ReadAll(vsock.NewFrameReader(bytes.NewReader(huge))); !errors.Is(err, vsock.ErrFrame) {
		t.Errorf("got %v", err)
	}
	var b bytes.Buffer
	if err := vsock.WriteFrame(&b, make([]byte, vsock.MaxFrame+1)); !errors.Is(err, vsock.ErrFrame) {
		t.Errorf("wrote it: %v", err)
	}
	if err := vsock.WriteFrame(&b, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := vsock.ReadFrame(bytes.NewReader(b.Bytes()), 4); !errors.Is(err, vsock.ErrFrame) {
		t.Errorf("took five bytes for four: %v", err)
	}
	if p, err := vsock.ReadFrame(&b, 5); err != nil || string(p) != "hello" {
		t.Errorf("got %q, %v", p, err)
	}
}

func FuzzFrameReader(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0, 'a', 'b', 'c', 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Add([]byte{3, 0, 0, 0, 'a'})
	f.Fuzz(func(t *testing.T, p []byte) {
		data, err := io.ReadAll(vsock.NewFrameReader(bytes.NewReader(p)))
		if len(data) > len(p) {
			t.Fatalf("%d bytes became %d", len(p), len(data))
		}
		if err == nil {
			if got, err := io.ReadAll(vsock.NewFrameReader(bytes.NewReader(frames(t, data)))); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("does not come back: %v", err)
			}
		}
	})
}
