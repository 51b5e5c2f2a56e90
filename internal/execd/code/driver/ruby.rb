# The driver for Ruby, 2.5 and later. The user's code is evaluated in the top
# level's binding, where local variables stay from one run to the next.

module Paddock
  ORDERS, REPORTS = [[3, "r"], [4, "w"]].map { |fd, mode| IO.for_fd(fd, mode, autoclose: false) }
  MAX_TEXT = 1 << 20
  MAX_FRAMES = 100

  @count = 0
  @run = 0
  @live = false

  class << self
    def quote(text)
      text = text.to_s
      text = text.encode("UTF-8", invalid: :replace, undef: :replace) unless text.encoding == Encoding::UTF_8
      escaped = text.scrub("\uFFFD").gsub(/["\\\x00-\x1f\x7f-\u{10ffff}]/) do |c|
        c.encode("UTF-16BE").unpack("n*").map { |unit| format("\\u%04x", unit) }.join
      end
      %("#{escaped}")
    end

    def send_report(kind, members = "")
      REPORTS.syswrite(%({"t":"#{kind}","n":#{@run},"count":#{@count}#{members}}\n))
    end

    # guarded yields, and returns the exception that ended it. Interrupts end
    # nothing else.
    def guarded
      @live = true
      yield
      nil
    rescue Exception => e # Also SystemExit and Interrupt, which end the run only.
      e
    ensure
      @live = false
    end

    def show(value)
      return if value.nil?

      text = value.inspect
      text = "#{text[0, MAX_TEXT]}… (#{text.length} characters in all)" if text.length > MAX_TEXT
      flush
      send_report("result", %(,"data":{"text/plain":#{quote(text)}}))
    end

    def flush
      $stdout.flush
      $stderr.flush
    rescue StandardError
      nil
    end

    def describe(error)
      message = error.is_a?(Interrupt) ? "the code was interrupted" : error.message.to_s
      lines = ["#{error.class}: #{message}"]
      (error.backtrace || []).reject { |l| l.include?("<paddock driver>") }.first(MAX_FRAMES).each { |l| lines << "    from #{l}" }
      name = error.is_a?(Interrupt) ? "KeyboardInterrupt" : error.class.name
      %(,"ename":#{quote(name)},"evalue":#{quote(message)},"traceback":[#{lines.map { |l| quote(l) }.join(",")}])
    end

    def run(number, code)
      @run = number
      @count += 1
      pid = Process.pid
      error = guarded do
        send_report("busy")
        show(TOPLEVEL_BINDING.eval(code, "<cell #{@count}>", 1))
      end
      # A child that the code has forked came here.
      exit!(error ? 1 : 0) unless Process.pid == pid
      flush
      error = nil if error.is_a?(SystemExit) && error.success?
      return send_report("done") unless error

      text = nil
      failed = guarded { text = describe(error) }
      text = %(,"ename":#{quote(error.class.name)},"evalue":"","traceback":[]) if failed
      send_report("error", text)
    end

    def serve
      [3, 4].each { |fd| IO.for_fd(fd, autoclose: false).close_on_exec = true }
      (5..9).each { |fd| IO.for_fd(fd).close }
      $stdout.sync = $stderr.sync = true
      main = Thread.current
      trap("INT") { main.raise(Interrupt, "") if @live }
      send_report("ready")
      while (head = ORDERS.gets)
        _, number, size = head.split
        run(number.to_i, ORDERS.read(size.to_i).force_encoding("UTF-8"))
      end
    end
  end
end

Paddock.serve
