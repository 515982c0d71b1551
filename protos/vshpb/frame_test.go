package vshpb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// frame prefixes a payload with its length.
func frame(payload []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func mustFrame(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hostData(stream StdioStream, data []byte) *HostMessage {
	return &HostMessage{Msg: &HostMessage_DataMessage{DataMessage: &DataMessage{Stream: stream, Data: data}}}
}

func TestFrameIsLittleEndianLengthAndProtobuf(t *testing.T) {
	got := mustFrame(t, &GuestMessage{Msg: &GuestMessage_Signal{Signal: Signal_SIGNAL_TERM}})
	if want := []byte{2, 0, 0, 0, 0x20, 15}; !bytes.Equal(got, want) {
		t.Errorf("frame = %x, want %x", got, want)
	}
	got = AppendData(nil, StdioStream_STDOUT_STREAM, []byte("hi"))
	if want := []byte{8, 0, 0, 0, 0x0a, 6, 0x08, 2, 0x12, 2, 'h', 'i'}; !bytes.Equal(got, want) {
		t.Errorf("data frame = %x, want %x", got, want)
	}
	got = AppendData(nil, StdioStream_STDIN_STREAM, nil)
	if want := []byte{4, 0, 0, 0, 0x0a, 2, 0x08, 1}; !bytes.Equal(got, want) {
		t.Errorf("end of stream = %x, want %x", got, want)
	}
}

func TestFramesOfABatchFitInto64KiB(t *testing.T) {
	b := AppendData(nil, StdioStream_STDERR_STREAM, make([]byte, BatchData))
	if len(b) > 64<<10 {
		t.Errorf("a batch makes %d bytes of frames, want at most %d", len(b), 64<<10)
	}
}

// Whatever is cut, encoded and delivered in pieces comes back whole, and every
// frame is one that proto.Unmarshal understands.
func TestDataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type part struct {
			stream StdioStream
			data   []byte
		}
		parts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) part {
			return part{
				stream: StdioStream(rapid.IntRange(0, 3).Draw(t, "stream")),
				data: bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(t, "byte"))},
					rapid.SampledFrom([]int{0, 1, MaxData - 1, MaxData, MaxData + 1, 3 * MaxData, BatchData}).Draw(t, "size")),
			}
		}), 0, 6).Draw(t, "parts")

		var stream bytes.Buffer
		w := NewWriter(&stream)
		for _, p := range parts {
			if err := w.WriteData(p.stream, p.data); err != nil {
				t.Fatal(err)
			}
		}
		var src io.Reader = &stream
		if rapid.Bool().Draw(t, "small reads") {
			src = iotest.HalfReader(&stream)
		}
		r := NewReader(src)
		for i, p := range parts {
			var got []byte
			for first := true; first || len(got) < len(p.data); first = false {
				payload, err := r.Next()
				if err != nil {
					t.Fatalf("part %d: %v", i, err)
				}
				s, data, ok := ParseData(payload)
				if !ok || s != p.stream || len(data) > MaxData {
					t.Fatalf("part %d: ParseData = %v, %d bytes, %v; want stream %v", i, s, len(data), ok, p.stream)
				}
				var m HostMessage
				if err := proto.Unmarshal(payload, &m); err != nil {
					t.Fatal(err)
				}
				if d := m.GetDataMessage(); d.GetStream() != s || !bytes.Equal(d.GetData(), data) {
					t.Fatalf("part %d: ParseData and proto.Unmarshal differ", i)
				}
				got = append(got, data...)
			}
			if !bytes.Equal(got, p.data) {
				t.Fatalf("part %d: %d bytes came back of %d", i, len(got), len(p.data))
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("after the last frame: %v, want EOF", err)
		}
	})
}

func TestReaderOnBrokenStreams(t *testing.T) {
	long := binary.LittleEndian.AppendUint32(nil, MaxMessage+1)
	for _, tc := range []struct {
		name   string
		stream []byte
		want   error
	}{
		{"empty", nil, io.EOF},
		{"ends within the length", []byte{1, 0, 0}, io.ErrUnexpectedEOF},
		{"ends within the message", []byte{4, 0, 0, 0, 1}, io.ErrUnexpectedEOF},
		{"one byte over the limit", append(long, make([]byte, MaxMessage+1)...), ErrTooLong},
		{"four gigabytes", []byte{0xff, 0xff, 0xff, 0xff}, ErrTooLong},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(tc.stream))
			for range 2 {
				if _, err := r.Next(); !errors.Is(err, tc.want) {
					t.Fatalf("Next: %v, want %v", err, tc.want)
				}
			}
		})
	}
}

func TestReaderTakesTheLargestMessage(t *testing.T) {
	r := NewReader(bytes.NewReader(frame(make([]byte, MaxMessage))))
	if b, err := r.Next(); err != nil || len(b) != MaxMessage {
		t.Fatalf("Next = %d bytes, %v", len(b), err)
	}
}

func TestReadyTellsWhetherAFrameIsBuffered(t *testing.T) {
	b := AppendData(nil, StdioStream_STDOUT_STREAM, []byte("a"))
	first := len(b)
	b = AppendData(b, StdioStream_STDOUT_STREAM, []byte("b"))
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		pw.Write(b[:len(b)-1])
		pw.Write(b[len(b)-1:])
	}()
	r := NewReader(pr)
	if r.Ready() {
		t.Error("ready before anything was read")
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if r.Ready() {
		t.Errorf("ready with %d of %d bytes of the second frame", len(b)-1-first, len(b)-first)
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if r.Ready() {
		t.Error("ready at the end")
	}
}

func TestAppendMessageRefusesWhatIsTooLong(t *testing.T) {
	m := &SetupConnectionRequest{Argv: []string{string(make([]byte, MaxMessage))}}
	if b, err := AppendMessage(nil, m); !errors.Is(err, ErrTooLong) || len(b) != 0 {
		t.Errorf("AppendMessage = %d bytes, %v; want ErrTooLong", len(b), err)
	}
}

// writes records the size of every Write.
type writes struct {
	sizes []int
	fail  error
}

func (w *writes) Write(p []byte) (int, error) {
	w.sizes = append(w.sizes, len(p))
	return len(p), w.fail
}

func TestWriterSendsABatchInOneWrite(t *testing.T) {
	var w writes
	if err := NewWriter(&w).WriteData(StdioStream_STDOUT_STREAM, make([]byte, BatchData)); err != nil {
		t.Fatal(err)
	}
	if len(w.sizes) != 1 {
		t.Errorf("writes of %v bytes, want a single one", w.sizes)
	}
}

func TestWriterStopsAfterAFailure(t *testing.T) {
	w := writes{fail: os.ErrDeadlineExceeded}
	fw := NewWriter(&w)
	for range 2 {
		if err := fw.WriteData(StdioStream_STDOUT_STREAM, []byte("x")); err != os.ErrDeadlineExceeded {
			t.Errorf("WriteData: %v", err)
		}
	}
	if len(w.sizes) != 1 {
		t.Errorf("%d writes, want none after the failed one", len(w.sizes))
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	data := make([]byte, BatchData)
	stream := AppendData(nil, StdioStream_STDOUT_STREAM, data)
	w := NewWriter(io.Discard)
	if n := testing.AllocsPerRun(50, func() { w.WriteData(StdioStream_STDOUT_STREAM, data) }); n > 0 {
		t.Errorf("WriteData allocates %v times", n)
	}
	src := bytes.NewReader(nil)
	r := NewReader(src)
	if n := testing.AllocsPerRun(50, func() {
		src.Reset(stream)
		for {
			payload, err := r.Next()
			if err != nil {
				break
			}
			ParseData(payload)
		}
	}); n > 0 {
		t.Errorf("reading a batch allocates %v times", n)
	}
}

// FuzzReader feeds the reader a stranger's bytes: it ends with an error of its
// kind, never hands out more than a message may hold, and ParseData agrees
// with proto.Unmarshal on what it accepts.
func FuzzReader(f *testing.F) {
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := NewReader(iotest.OneByteReader(bytes.NewReader(stream)))
		rest := stream
		for {
			payload, err := r.Next()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrTooLong) {
					t.Fatalf("Next: %v", err)
				}
				if err == io.EOF && len(rest) != 0 {
					t.Fatalf("EOF with %d bytes left", len(rest))
				}
				return
			}
			if len(payload) > MaxMessage {
				t.Fatalf("a message of %d bytes", len(payload))
			}
			if !bytes.Equal(frame(payload), rest[:prefix+len(payload)]) {
				t.Fatal("the message is not what the stream holds")
			}
			rest = rest[prefix+len(payload):]
			checkParseData(t, payload)
		}
	})
}

func checkParseData(t *testing.T, payload []byte) {
	s, data, ok := ParseData(payload)
	if !ok {
		return
	}
	var host HostMessage
	var guest GuestMessage
	if err := errors.Join(proto.Unmarshal(payload, &host), proto.Unmarshal(payload, &guest)); err != nil {
		t.Fatalf("ParseData accepts what proto.Unmarshal does not: %v", err)
	}
	for _, d := range []*DataMessage{host.GetDataMessage(), guest.GetDataMessage()} {
		if d.GetStream() != s || !bytes.Equal(d.GetData(), data) {
			t.Fatalf("ParseData = %v %q, proto.Unmarshal = %v", s, data, d)
		}
	}
}

// TestSeedsAreWhatTheyClaim keeps the committed fuzz seeds honest: they are
// written by this table when VSHPB_WRITE_SEEDS is set.
func TestSeedsAreWhatTheyClaim(t *testing.T) {
	setup := mustFrame(t, &SetupConnectionRequest{
		Target: Target, User: "chronos", Argv: []string{"ls", "-l"},
		Env: map[string]string{"TERM": "xterm"}, WindowRows: 24, WindowCols: 80,
	})
	exited := mustFrame(t, &HostMessage{Msg: &HostMessage_StatusMessage{
		StatusMessage: &ConnectionStatusMessage{Status: ConnectionStatus_EXITED, Code: 3},
	}})
	seeds := map[string][]byte{
		"setup":             setup,
		"session":           slices.Concat(AppendData(nil, StdioStream_STDOUT_STREAM, []byte("hello\n")), exited),
		"two-chunks":        AppendData(nil, StdioStream_STDIN_STREAM, make([]byte, MaxData+1)),
		"end-of-stream":     AppendData(nil, StdioStream_STDIN_STREAM, nil),
		"empty-message":     frame(nil),
		"too-long":          {0x01, 0x10, 0, 0},
		"four-gigabytes":    {0xff, 0xff, 0xff, 0xff},
		"cut":               setup[:len(setup)-1],
		"repeated-fields":   frame([]byte{0x0a, 8, 0x08, 1, 0x12, 0, 0x08, 2, 0x12, 0}),
		"twice":             frame([]byte{0x0a, 2, 0x08, 1, 0x0a, 3, 0x12, 1, 'x'}),
		"negative-stream":   frame([]byte{0x0a, 11, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}),
		"unknown-field":     frame([]byte{0x0a, 4, 0x18, 1, 0x08, 1}),
		"wrong-wire-type":   frame([]byte{0x08, 1}),
		"inner-overrun":     frame([]byte{0x0a, 0x7f, 0x08, 1}),
		"http-on-this-port": []byte("GET / HTTP/1.1\r\n\r\n"),
	}
	for name, stream := range seeds {
		path := "testdata/fuzz/FuzzReader/" + name
		want := corpusFile(stream)
		if os.Getenv("VSHPB_WRITE_SEEDS") != "" {
			if err := os.MkdirAll("testdata/fuzz/FuzzReader", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("seed %s is stale (%v): run this test with VSHPB_WRITE_SEEDS=1", name, err)
		}
	}
}

func BenchmarkWriteData(b *testing.B) {
	data := make([]byte, BatchData)
	w := NewWriter(io.Discard)
	b.SetBytes(BatchData)
	for b.Loop() {
		w.WriteData(StdioStream_STDOUT_STREAM, data)
	}
}

func BenchmarkRead(b *testing.B) {
	stream := AppendData(nil, StdioStream_STDOUT_STREAM, make([]byte, BatchData))
	src := bytes.NewReader(nil)
	r := NewReader(src)
	b.SetBytes(BatchData)
	for b.Loop() {
		src.Reset(stream)
		for {
			payload, err := r.Next()
			if err != nil {
				break
			}
			ParseData(payload)
		}
	}
}

// corpusFile is the form in which go test -fuzz keeps one []byte.
func corpusFile(b []byte) []byte {
	return fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", b)
}
