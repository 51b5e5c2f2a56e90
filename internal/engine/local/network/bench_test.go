package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"
)

// percentiles reports the times of single operations.
func percentiles(b *testing.B, times []time.Duration) {
	b.Helper()
	slices.Sort(times)
	for _, p := range []int{50, 95, 99} {
		b.ReportMetric(float64(times[len(times)*p/100].Nanoseconds())/1000, fmt.Sprintf("p%d-µs", p))
	}
}

// twentyRules are ranges that don't touch, as 20 rules about addresses make.
func twentyRules(seed int) *Policy {
	p := &Policy{}
	for i := range 20 {
		first, last := [4]byte{11, byte(seed % 200), byte(i), 0}, [4]byte{11, byte(seed % 200), byte(i), 127}
		p.Ranges = append(p.Ranges, Range{First: netip.AddrFrom4(first), Last: netip.AddrFrom4(last), Allow: i%2 == 0})
	}
	return p
}

// policed makes a network in which so many sandboxes have 20 rules each, the
// first of which is attached and may reach the public server.
func policed(b *testing.B, name string, count int) (*lab, *ns, netip.Addr) {
	b.Helper()
	o := options(name, "10.213.0.0/20")
	o.Policies = map[netip.Addr]*Policy{}
	for i := range count {
		a, err := AddrOf(o.Subnet, i)
		if err != nil {
			b.Fatal(err)
		}
		o.Policies[a] = twentyRules(i)
	}
	l := newLab(b, o)
	n, addr := l.sandbox(b, 0)
	self := netip.MustParseAddr(addr)
	if count > 0 {
		p := twentyRules(0)
		p.Ranges = append(p.Ranges, oneAddr(public, true, false))
		if err := l.SetPolicy(testContext(b), self, p, nil); err != nil {
			b.Fatal(err)
		}
	}
	return l, n, self
}

// The cost of a change of a policy and of a learned address must not depend on
// how many sandboxes there are.
func BenchmarkSetPolicy(b *testing.B) {
	for _, count := range []int{1, 1000} {
		b.Run("sandboxes="+strconv.Itoa(count), func(b *testing.B) {
			l, _, self := policed(b, "s", count)
			ctx := b.Context()
			var times []time.Duration
			for i := 0; b.Loop(); i++ {
				p := twentyRules(i % 2)
				begin := time.Now()
				if err := l.SetPolicy(ctx, self, p, nil); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(begin))
			}
			percentiles(b, times)
		})
	}
}

func BenchmarkCutForbidden(b *testing.B) {
	l, _, self := policed(b, "f", 1)
	for b.Loop() {
		if err := l.CutForbidden(self); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLearn(b *testing.B) {
	for _, count := range []int{1, 1000} {
		b.Run("sandboxes="+strconv.Itoa(count), func(b *testing.B) {
			l, _, self := policed(b, "l", count)
			ctx := b.Context()
			var times []time.Duration
			for i := 0; b.Loop(); i++ {
				begin := time.Now()
				if err := l.Learn(ctx, self, []Learned{{Addr: netip.AddrFrom4([4]byte{12, 0, byte(i >> 8 % 16), byte(i)}), Lifetime: time.Minute}}); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(begin))
			}
			percentiles(b, times)
		})
	}
}

// The way of a packet to the outside and back, without any policy, with one
// sandbox under one, and with many.
func BenchmarkPacket(b *testing.B) {
	for _, count := range []int{0, 1, 1000} {
		b.Run("policies="+strconv.Itoa(count), func(b *testing.B) {
			l, n, _ := policed(b, "k", count)
			var server net.PacketConn
			l.outside.do(b, func() (err error) {
				server, err = net.ListenPacket("udp4", public+":7001")
				return err
			})
			defer server.Close()
			go func() {
				buf := make([]byte, 2048)
				for {
					k, from, err := server.ReadFrom(buf)
					if err != nil {
						return
					}
					server.WriteTo(buf[:k], from)
				}
			}()
			var c net.Conn
			n.do(b, func() (err error) {
				c, err = net.Dial("udp", public+":7001")
				return err
			})
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			buf := make([]byte, 64)
			var times []time.Duration
			for b.Loop() {
				begin := time.Now()
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(begin))
			}
			percentiles(b, times)
		})
	}
}

// One TCP connection to the outside, packet by packet, without and with a
// policy.
func BenchmarkStream(b *testing.B) {
	for _, count := range []int{0, 1, 1000} {
		b.Run("policies="+strconv.Itoa(count), func(b *testing.B) {
			l, n, _ := policed(b, "t", count)
			done := make(chan error, 1)
			l.outside.do(b, func() error {
				s, err := net.Listen("tcp4", public+":7003")
				if err != nil {
					return err
				}
				go func() {
					defer s.Close()
					c, err := s.Accept()
					if err == nil {
						defer c.Close()
						buf := make([]byte, 1<<20)
						for err == nil {
							_, err = c.Read(buf)
						}
					}
					done <- nil
				}()
				return nil
			})
			var c net.Conn
			n.do(b, func() (err error) {
				c, err = net.Dial("tcp", public+":7003")
				return err
			})
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			c.Close()
			<-done
		})
	}
}
