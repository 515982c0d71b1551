package vshpb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Limits of the vsh protocol as ChromeOS has it, in bytes.
const (
	// MaxMessage bounds an encoded message, without its length prefix.
	MaxMessage = 4096
	// MaxData bounds the data of one DataMessage.
	MaxData = 4000
	// BatchData is how much data to hand to Writer.WriteData at once: its
	// frames just fit into 32 KiB, which every vsock backend carries in one
	// packet. Small writes cost a vhost-user backend most of its throughput.
	BatchData = 8 * MaxData
)

// Target is the SetupConnectionRequest.target of the VM itself.
const Target = "/vm_shell"

// ErrTooLong says that a message is longer than MaxMessage. A reader's stream
// cannot be used any more.
var ErrTooLong = errors.New("vsh message is too long")

const prefix = 4 // a length, uint32 little endian

// A Reader takes messages off a stream. What a stranger sends makes it hold
// no more than its one buffer.
type Reader struct {
	buf  *bufio.Reader
	last int // bytes of the frame that Next returned, still in buf
}

// NewReader returns a Reader of the frames in r. It reads ahead.
func NewReader(r io.Reader) *Reader {
	return &Reader{buf: bufio.NewReaderSize(r, 128<<10)}
}

// Next waits for a message and returns its encoded form, which stays valid
// until the next call. The error is io.EOF at the end of the stream and
// io.ErrUnexpectedEOF within a frame.
func (r *Reader) Next() ([]byte, error) {
	r.buf.Discard(r.last)
	r.last = 0
	head, err := r.buf.Peek(prefix)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head)
	if n > MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, MaxMessage)
	}
	frame, err := r.buf.Peek(prefix + int(n))
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	r.last = len(frame)
	return frame[prefix:], nil
}

// Ready reports whether Next would return without waiting for the stream.
func (r *Reader) Ready() bool {
	ahead, _ := r.buf.Peek(r.buf.Buffered())
	ahead = ahead[r.last:]
	if len(ahead) < prefix {
		return false
	}
	n := binary.LittleEndian.Uint32(ahead)
	return n > MaxMessage || len(ahead)-prefix >= int(n)
}

// Read waits for a message and decodes it into m.
func (r *Reader) Read(m proto.Message) error {
	payload, err := r.Next()
	if err != nil {
		return err
	}
	return proto.Unmarshal(payload, m)
}

// ParseData decodes a HostMessage or GuestMessage that is a DataMessage and
// nothing else, without allocating: data is part of payload. When ok is false
// the payload is something else and needs proto.Unmarshal.
func ParseData(payload []byte) (stream StdioStream, data []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(payload)
	if n < 0 || num != 1 || typ != protowire.BytesType {
		return 0, nil, false
	}
	body, m := protowire.ConsumeBytes(payload[n:])
	if m < 0 || n+m != len(payload) {
		return 0, nil, false
	}
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return 0, nil, false
		}
		body = body[n:]
		switch {
		case num == 1 && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(body)
			if n < 0 {
				return 0, nil, false
			}
			stream, body = StdioStream(int32(v)), body[n:]
		case num == 2 && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(body)
			if n < 0 {
				return 0, nil, false
			}
			data, body = v, body[n:]
		default:
			return 0, nil, false
		}
	}
	return stream, data, true
}

// A Writer puts messages on a stream, each call in a single Write. It is safe
// for concurrent use. After a failed write, which may have left half a frame
// on the stream, every call fails.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends m.
func (w *Writer) Write(m proto.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, err := AppendMessage(w.buf[:0], m)
	if err != nil {
		return err
	}
	return w.flush(b)
}

// WriteData sends data, cut into messages of at most MaxData bytes. No data is
// the end of the stream.
func (w *Writer) WriteData(stream StdioStream, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush(AppendData(w.buf[:0], stream, data))
}

func (w *Writer) flush(b []byte) error {
	w.buf = b
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
	return w.err
}

// AppendMessage appends the frame of m to b.
func AppendMessage(b []byte, m proto.Message) ([]byte, error) {
	n := proto.Size(m)
	if n > MaxMessage {
		return b, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, MaxMessage)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return proto.MarshalOptions{}.MarshalAppend(b, m)
}

// AppendData appends to b the frames of data, cut into messages of at most
// MaxData bytes: HostMessages or GuestMessages, whose DataMessage is the same.
// No data makes one frame, the end of the stream.
func AppendData(b []byte, stream StdioStream, data []byte) []byte {
	for {
		n := min(len(data), MaxData)
		b = appendDataFrame(b, stream, data[:n])
		if data = data[n:]; len(data) == 0 {
			return b
		}
	}
}

func appendDataFrame(b []byte, stream StdioStream, data []byte) []byte {
	body := protowire.SizeTag(1) + protowire.SizeVarint(uint64(stream))
	if len(data) > 0 {
		body += protowire.SizeTag(2) + protowire.SizeBytes(len(data))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(protowire.SizeTag(1)+protowire.SizeBytes(body)))
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(body))
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(stream))
	if len(data) > 0 {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendBytes(b, data)
	}
	return b
}
